"""Lines to break: by file, and by the test that sees it, a text that the file has once.

In it ⟨what is there→what is put in its place⟩. ``python -m tests.mutations`` tries them. Each is a
mistake that could be made, such as a sign, a factor ½ or a term that is left out. Where the code
moves, the text here moves with it.
"""

LINES: dict[str, dict[str, list[str]]] = {
    "inference/columns/angle.py": {
        "test_own_kinds_of_columns.py::test_angles_go_to_model_space_and_back": [
            "(self._line.unscaled(x) ⟨+→-⟩ self._cut) % CIRCLE"
        ],
        (
            "test_own_kinds_of_columns.py::"
            "test_an_angle_is_cut_where_none_is_and_has_no_ends_elsewhere"
        ): ["angles[widest] + gaps[widest] ⟨/→*⟩ 2"],
    },
    "inference/commands/cli.py": {
        "test_cli.py::test_words_are_read_as_the_signature_says[--steps=1e3-expected2]": [
            'power[1] + "0" * ⟨int(power[2])→(int(power[2]) - 1)⟩'
        ]
    },
    "pyro_mdm/budgets.py": {
        "test_budgets.py::test_what_a_training_leaves_is_for_the_next": [
            "left / ⟨max(1, self.trainings - self._turn + 1)→self.trainings⟩"
        ],
        "test_budgets.py::test_steps_are_those_given_or_usual_or_as_many_as_fit": [
            "usual⟨ if seconds is None else ANY_STEPS→⟩"
        ],
    },
    "pyro_mdm/conditioning/completions.py": {
        "test_chained.py::test_a_training_on_gaps_begins_with_them": [
            "data.completed[self._present(0)]⟨.to(device)→⟩"
        ]
    },
    "inference/folders/checkpoints.py": {
        "test_runs.py::test_the_checkpoint_just_written_stays_though_later_ones_are_damaged": [
            "for path in _files(folder)⟨ if _step(path) <= checkpoint.step→⟩][keep:]"
        ],
        (
            "test_nonlinear_programs.py::"
            "test_any_guide_trains_and_resumes_to_the_same_numbers_bit_for_bit[learned]"
        ): ["setdefault(index[name], {})[entry] = ⟨→0 * ⟩value"],
    },
    "inference/measuring/compare_tables.py": {
        "test_compare.py::test_a_pair_turned_round_has_the_other_sign": [
            "**{name: ⟨0.0 - →⟩row[name] for name in signed},"
        ]
    },
    "inference/measuring/evaluated.py": {
        "test_condition_programs.py::test_evaluate_writes_what_it_knows_of_each_datum": [
            '{"row": ⟨numbers.tolist()→sorted(numbers.tolist(), reverse=True)⟩}'
        ]
    },
    "inference/measuring/experiment_summary.py": {
        "test_experiment.py::test_learned_diffusions_are_set_beside_fixed_ones": [
            "Measured(mean, ⟨math.hypot(error, images)→error⟩)"
        ],
    },
    "inference/measuring/inspection.py": {
        "test_inspect.py::test_damping_of_known_polynomials[cld]": ['return "critical", ⟨0.5→1.0⟩']
    },
    "inference/training/optimizers.py": {
        "test_optimizers.py::test_steps_are_muons_where_asked_and_adamws_elsewhere": [
            "max(1.0, rows / columns)⟨ ** 0.5→⟩"
        ]
    },
    "inference/training/trainee.py": {
        "test_programs.py::test_a_stopped_run_resumes_to_the_same_numbers_bit_for_bit[muon]": [
            '⟨torch.manual_seed(seed_from(seed, "dropout", step, r))→pass⟩'
        ]
    },
    "models/imagenet32.py": {
        "test_datasets.py::test_values_arrive_pixel_by_pixel_in_the_right_parts[new]": [
            "images[⟨rows→count : count + len(batch)⟩] = batch"
        ],
    },
    "pyro_mdm/automatic/chain.py": {
        "test_automatic_chain.py::test_slow_annealing_is_reversible[2]": [
            "times[:, None] * Q[:, 0]⟨ / 2→⟩,"
        ],
        "test_automatic_chain.py::test_slow_annealing_is_reversible[learned]": [
            "rest @ torch.linalg.solve_ex(⟨D - Q→Q + D⟩, D[:, :1])"
        ],
        "test_automatic_chain.py::test_weights_mean_z_whatever_the_parameters[2]": [
            "⟨_cholesky(rest - R @ rest @ R.mT, times)→L⟩",
            (
                "return (solved(root, ⟨kicked).square() - solved(root, y→y).square() - "
                "solved(root, kicked⟩)"
            ),
        ],
        "test_automatic_chain.py::test_weights_mean_z_whatever_the_parameters[1]": [
            "return forth ⟨-→+⟩ _cost(back, epsilon_back"
        ],
        "test_automatic_chain.py::test_a_control_that_follows_the_annealed_target_costs_nothing": [
            "pull[:, None] ⟨-→+⟩ pace * u"
        ],
        "test_automatic_chain.py::test_noising_paths_are_weighed_as_generated_ones[1]": [
            "pull[:, None] ⟨-→+⟩ pace * control"
        ],
        "test_automatic_chain.py::test_noising_paths_are_weighed_as_generated_ones[2]": [
            "moved = after ⟨-→+⟩ kick[:, None]"
        ],
    },
    "pyro_mdm/automatic/shape.py": {
        "test_automatic_shape.py::test_the_jacobian_of_a_shape_is_that_of_autograd": [
            "square = ⟨self._tails(u) *→⟩ u.square()"
        ],
        "test_automatic_shape.py::test_the_inverse_of_a_shape_is_exact": [
            "return z * (-root⟨ / 2→⟩).exp()"
        ],
    },
    "pyro_mdm/evaluation/weights.py": {
        "test_gaps.py::test_both_sides_are_those_in_closed_form[vpsde]": [
            "Measured.from_values(upper - lower)⟨→.scaled(0.5)⟩",
        ],
        "test_evidence.py::test_weights_that_hardly_differ_have_an_error_whatever_their_tail": [
            "(is_level ⟨|→&⟩ ~(k.to(value)"
        ],
        (
            "test_few_values.py::"
            "test_no_sample_of_repeats_is_flagged_and_errors_cover[lognormal 1.5-8]"
        ): ["error = ⟨torch.maximum(of_logs, spread)→spread⟩"],
    },
    "pyro_mdm/automatic/fitting.py": {
        "test_automatic_laplace.py::test_the_gaussian_leaves_its_units[gaussian]": [
            "Ratio(h.log_density, ⟨middle +→⟩ root @ h.loc"
        ],
        "test_automatic_mixture.py::test_many_modes_need_no_chain": [
            "return -bound.mean() ⟨-→+⟩ _clamped(self.guide.shape.log_density(rows)).mean()"
        ],
        (
            "test_automatic_mixture.py::"
            "test_shares_are_learned_where_particles_are_in_wrong_numbers"
        ): ["bound = bound ⟨+→-⟩ gain * (log_share - log_share.detach())"],
        "test_first_answers.py::test_what_is_kept_has_the_highest_bound": [
            "if bound_of_laplace ⟨>→<⟩ bound():"
        ],
        "test_first_answers.py::test_a_fit_takes_its_seconds_whatever_a_run_costs": [
            "(1 - before) * left >= worth * ⟨seconds→0⟩"
        ],
    },
    "pyro_mdm/automatic/laplace.py": {
        "test_automatic_laplace.py::test_the_mode_and_the_curvature_are_those_of_a_density": [
            "axes ⟨/→*⟩ values.abs().clamp_min(LEAST_CURVATURE).sqrt()"
        ],
        "test_automatic_laplace.py::test_a_scale_that_goes_to_zero_is_not_followed": [
            "if worse == ⟨PATIENCE→99⟩:"
        ],
    },
    "pyro_mdm/automatic/mixture.py": {
        "test_automatic_mixture.py::test_weights_mean_z_from_a_mixture": [
            "return log_unit ⟨-→+⟩ self._log_parts",
        ],
        (
            "test_automatic_mixture.py::"
            "test_noising_paths_from_a_mixture_are_weighed_as_generated_ones"
        ): ["torch.multinomial(shares⟨→.sign()⟩, 1)"],
        "test_automatic_mixture.py::test_repeated_draws_are_no_components": [
            "order if distinct is ⟨→not ⟩None"
        ],
        "test_automatic_mixture.py::test_halves_have_the_moments_of_their_component": [
            "(1 ⟨-→+⟩ skewness[at] / ",
            "scale[at] = math.sqrt(1 - APART⟨**2→⟩)",
        ],
        "test_automatic_mixture.py::test_components_with_two_modes_are_split": [
            "if k in clearest and gains[k] ⟨>→<⟩ 0",
        ],
        "test_automatic_mixture.py::test_weights_of_the_start_are_those_of_the_mixture": [
            "constant = log_shares ⟨-→+⟩ log_scales -"
        ],
        "test_automatic_mixture.py::test_components_are_those_of_the_draws[3]": [
            "means = sums[:, 1 : 1 + dim]⟨ / counts[:, None]→⟩",
            "if value ⟨>→<⟩ best:",
        ],
    },
    "pyro_mdm/automatic/ratio.py": {
        "test_automatic_guide.py::test_weights_have_the_evidence_as_their_mean[None]": [
            "/ 2 ⟨-→+⟩ self.log_volume(u)"
        ],
        "test_automatic_shape.py::test_the_ratio_of_a_shape_is_one_density": [
            "return self.log_density(x) ⟨+ log_det→⟩ + u.square().sum(-1) / 2"
        ],
    },
    "pyro_mdm/automatic/density.py": {
        "test_automatic_subsampled.py::test_terms_are_those_of_pyro[nested]": [
            'inner = log_det.dim() - value.dim() ⟨+→-⟩ site["fn"].event_dim',
        ],
        "test_automatic_guide.py::test_the_density_is_that_of_pyro": [
            "log_dets.append(⟨→-⟩log_det.sum())"
        ],
        "test_automatic_density.py::test_discrete_sites_are_summed_over_as_by_pyro[1-tenth]": [
            "return ⟨scales.pop() * →⟩total.reshape(n)"
        ],
    },
    "pyro_mdm/automatic/subsampled.py": {
        (
            "test_automatic_subsampled.py::"
            "test_losses_of_subsamples_are_unbiased_with_their_gradients[weights]"
        ): ["alone + log_w.sum(1) * ⟨(self.plate.size / self.plate.batch)→1⟩"],
        "test_automatic_subsampled.py::test_a_full_pass_has_the_evidence_as_its_mean[4-1]": [
            "⟨min(plate.batch, plate.size - first)→plate.batch⟩"
        ],
        "test_automatic_subsampled.py::test_a_full_pass_has_the_evidence_as_its_mean[4-5]": [
            "log_w.logsumexp(1)⟨ - math.log(paths)→⟩"
        ],
        "test_automatic_subsampled.py::test_a_call_has_the_weight_of_its_subsample[heavy]": [
            "log_density = ⟨-→⟩log_det"
        ],
    },
    "pyro_mdm/automatic/local.py": {
        (
            "test_automatic_subsampled.py::"
            "test_weights_of_rows_have_their_evidence_as_their_mean[None]"
        ): ["log().sum(-1) ⟨-→+⟩ self.log_scale.sum(-1)"],
        "test_automatic_subsampled.py::test_weights_of_normal_rows_are_exact_before_training": [
            "z = z ⟨+→-⟩ _unwhitened(root, bounded(slope, LIMIT))"
        ],
    },
    "pyro_mdm/automatic/rows.py": {
        "test_automatic_subsampled.py::test_terms_are_those_of_pyro[nested]": [
            "scale = ⟨self.batch / self.size→1⟩",
        ],
    },
    "pyro_mdm/automatic/bidirectional.py": {
        "test_automatic_checks.py::test_what_a_program_computes_follows_its_latents": [
            "if ⟨not is_computed(site)→True⟩}"
        ]
    },
    "pyro_mdm/automatic/moments.py": {
        "test_automatic_checks.py::test_few_draws_elsewhere_may_be_off_by_their_error": [
            "math.sqrt(1 / self.effective⟨ + 1 / other.effective→⟩)"
        ],
        "test_automatic_checks.py::test_draws_elsewhere_are_no_agreement": [
            "<= ⟨→10 * ⟩max(APART, ERRORS * error)"
        ],
        "test_automatic_checks.py::test_errors_of_moments_are_those_of_repetitions": [
            "mean_error = (shares⟨.square()→⟩ * squares)",
            "spread / (⟨2 * →⟩deviation)",
        ],
    },
    "pyro_mdm/automatic/symmetry.py": {
        "test_automatic_symmetry.py::test_maps_are_those_of_the_program": [
            "log_p = (log_p⟨ - density.log_jacobian(stacked)→⟩)",
        ],
        "test_automatic_symmetry.py::test_images_have_the_same_density": [
            "torch.where(changes.view(shape), ⟨values[name] * sign→values[name]⟩, values[name])",
        ],
    },
    "pyro_mdm/automatic/defensive.py": {
        "test_first_answers.py::test_a_density_made_of_rounding_is_no_evidence": [
            "log_w[large] ⟨-=→+=⟩ error"
        ],
    },
    "pyro_mdm/automatic/weighing.py": {
        "test_automatic_checks.py::test_an_exact_guide_has_no_gap[diffusion0]": [
            "noising_cost(ratio, u) ⟨+→-⟩ ratio.log_unit(u)"
        ],
    },
    "pyro_mdm/imported/checking.py": {
        (
            "test_import_check.py::test_a_fault_of_an_exact_network_is_named"
            "[data at 1-velocity-the other way]"
        ): ["schedule.time⟨.flip(0)→⟩, -1"],
        (
            "test_import_check.py::test_a_fault_of_an_exact_network_is_named"
            "[data at 1-velocity-from 0 to 1 and the other way]"
        ): ["moved = shift ⟨-→+⟩ b / (a * scale)"],
        "test_import_check.py::test_pairs_by_optimal_transport_are_told[1.0]": [
            "PAIRED[0] < ⟨slope→-slope⟩ < PAIRED[1]"
        ],
    },
    "pyro_mdm/imported/ends.py": {
        "test_best_ends.py::test_the_chosen_ends_have_a_better_bound[data at 1-VPSDE]": [
            '("max_log_snr", way ⟨-→+⟩ decoded',
            "error = ⟨levels.exp() * →⟩errors_by_level",
        ],
    },
    "pyro_mdm/imported/denoiser.py": {
        "test_imported.py::test_what_is_read_is_the_denoiser[cosine-noise]": [
            "return 1.0, -sigma / ⟨(alpha * scale)→scale⟩"
        ],
        "test_imported.py::test_what_is_read_is_the_denoiser[data at 0-v]": [
            "square = ⟨alpha**2 + sigma**2→1.0⟩"
        ],
        "test_imported.py::test_what_is_read_is_the_denoiser[cosine-velocity]": [
            "return ⟨at.sigma_rate * alpha→alpha⟩ / slope"
        ],
        "test_imported.py::test_what_is_read_is_the_denoiser[vp-data]": [
            "lam.double()⟨ - 2 * math.log(self.scale)→⟩"
        ],
        "test_imported.py::test_data_of_double_precision_and_a_network_of_single": [
            "else torch.⟨promote_types(w.dtype, torch.float)→double⟩"
        ],
        "test_imported.py::test_what_is_read_is_the_denoiser[sigma-data]": [
            "more = ⟨2 * math.log(scale)→0.0⟩"
        ],
    },
    "pyro_mdm/imported/doors.py": {
        (
            "test_imported.py::"
            "test_a_scheduler_of_edm_reads_a_network_as_diffusers_does[v_prediction]"
        ): ["c_out = ⟨self.sign * s→s⟩"],
        "test_imported.py::test_a_diffusion_of_denoising_diffusion_pytorch[pred_v-True]": [
            "shift = ⟨-→⟩start / scale"
        ],
        "test_imported.py::test_a_learned_variance_of_denoising_diffusion_pytorch": [
            '⟨"noise" if learned_variance else →⟩_prediction(process.objective)'
        ],
    },
    "pyro_mdm/imported/schedules.py": {
        "test_imported.py::test_of_times_that_are_whole_the_nearest_is_taken": [
            "⟨torch.where(log_snr - low < high - log_snr, i - 1, i)→i⟩"
        ],
        "test_imported.py::test_a_schedule_of_cosines_ends_where_rounding_begins": [
            "(sigma > ⟨rounding→0⟩)"
        ],
        "test_imported.py::test_what_is_read_is_the_denoiser[cosine-noise]": [
            "for _ in range(⟨REFINED→0⟩):"
        ],
        "test_imported.py::test_what_is_read_is_the_denoiser[data at 1-velocity]": [
            "⟨norm * →⟩(sign * log_snr).sigmoid().sqrt() for sign in (1, -1)"
        ],
    },
    "pyro_mdm/conditioning/denoiser.py": {
        "test_conditioning.py::test_the_denoiser_is_that_of_the_conditional_law[correlated]": [
            "torch.where(self._for(z, self.left_out), ⟨-→⟩math.inf, maps)"
        ]
    },
    "pyro_mdm/contexts.py": {
        "test_given_context.py::test_dropout_hides_contexts_in_training_alone": [
            "return encodings * (u ⟨>=→<⟩ self.dropout).to(encodings)"
        ]
    },
    "pyro_mdm/diffusions/clocks.py": {
        "test_diffusions.py::test_clocks_are_consistent[LinearBeta0]": [
            "return s * (self.beta_min + ⟨0.5 * →⟩self.slope * s)"
        ],
    },
    "pyro_mdm/diffusions/closed.py": {
        "test_laws.py::test_prior_kl_is_the_divergence_of_gaussians[vpsde-own_clock]": [
            "torch.logdet(prior) ⟨-→+⟩ end.log_det)",
            "quadratic = ⟨0.5 * →⟩(column.mT @",
        ],
        "test_truths.py::test_bounds_are_the_log_likelihood[cld]": [
            "torch.logdet(prior)⟨ - end.log_det→⟩)"
        ],
        "test_truths.py::test_bounds_are_the_log_likelihood[context]": [
            "with_event_dims(⟨0.5 * →⟩(rate * log_snr.exp()).to(x), x)"
        ],
        (
            "test_learned_ends.py::"
            "test_the_gradient_of_the_whole_bound_is_that_of_the_closed_form[constant-given]"
        ): ["weight = ⟨0.5 * →⟩torch.exp(level).to(x)"],
    },
    "pyro_mdm/plots/tensorboard.py": {
        "test_report.py::test_all_terms_of_the_bound_are_curves": [
            "nats = value * num_dims⟨ * math.log(2)→⟩"
        ]
    },
    "inference/samplers/published.py": {
        "test_published.py::test_the_sampler_has_quadratic_times_and_no_noise_at_last": [
            "torch.linspace(1, 0, steps + 1).to(start)⟨.square()→⟩",
            "torch.⟨zeros_like→ones_like⟩(y)) if last",
        ]
    },
    "pyro_mdm/varying/interpolants.py": {
        "test_log_volume.py::test_times_are_found_by_it[ve]": [
            "torch.exp(-value⟨ if name == LOG_SNR else value→⟩)"
        ],
        "test_linear_laws.py::test_interpolants_have_their_digits[subvp]": [
            "_matrix(later / earlier), _matrix(⟨later→earlier⟩.square() * duration)"
        ],
        "test_linear_laws.py::test_functions_of_time_agree_with_closed_forms": [
            "gained = ((-⟨2 * →⟩pulled(run)).exp() * tau * weights).sum(-1) * length"
        ],
    },
    "pyro_mdm/varying/interpolant_clocks.py": {
        "test_linear_laws.py::test_interpolants_have_their_digits[given]": [
            ("return 2 * sigma * ⟨(by_sigma - sigma / alpha * by_alpha)→by_sigma⟩ / alpha.square()")
        ]
    },
    "pyro_mdm/diffusions/ends.py": {
        (
            "test_learned_ends.py::"
            "test_a_second_derivative_of_a_root_is_an_error[end_of_constant_matrices]"
        ): ["if ⟨not torch.is_grad_enabled()→True⟩:"],
        (
            "test_learned_ends.py::"
            "test_ends_of_one_factorization_have_the_derivatives_of_two[2-None-options1]"
        ): ["step = ⟨-→⟩error / (tau * slope)"],
    },
    "pyro_mdm/diffusions/linear.py": {
        "test_learned_ends.py::test_no_value_of_parameters_outlives_them[to data]": [
            "and same⟨ and all(map(torch.equal, held.parameters, parameters))→⟩:"
        ],
        "test_priors.py::test_distribution_is_the_gaussian_where_it_is_one": [
            "⟨0.5 * →⟩num_dims * (log_det + K * math.log(2 * math.pi * math.e))"
        ],
    },
    "pyro_mdm/diffusions/kernels.py": {
        (
            "test_diffusions.py::"
            "test_marginals_are_transitions_from_the_start_and_have_their_factors[vpsde]"
        ): ["log_det, growth = ⟨2 * →⟩logs.sum(-1), amplification"],
        "test_sampler_orders.py::test_every_sampler_has_its_weak_order[splitting_1-vpsde]": [
            "-(self._A + self._GG @ self._precision()⟨→ / 2⟩)"
        ],
        "test_kernels.py::test_marginals_have_their_digits[cld]": [
            "log_det=pulled.log_det + ⟨2 * →⟩trace)"
        ],
    },
    "pyro_mdm/diffusions/linear_matrices.py": {
        "test_linear_laws.py::test_momentum_is_the_integral_of_a_brownian_motion[0.3]": [
            "noise = ⟨→2 * ⟩G @ G.mT"
        ],
        "test_linear_laws.py::test_a_prior_follows_the_end_unless_it_is_given": [
            "return self.linear.⟨terminal→start⟩.covariance"
        ],
        "test_kernels.py::test_marginals_have_their_digits[cld]": [
            "solve_ex(Sigma, ⟨Q + D→D - Q⟩, left=False)"
        ],
        "test_diffusions.py::test_transitions_compose_and_keep_the_stationary_law[vpsde]": [
            "left=False).result, ⟨2→1⟩ * D"
        ],
    },
    "pyro_mdm/by_dimension/coordinates.py": {
        "test_frequencies.py::test_the_cosine_transform_is_orthonormal_and_scipys": [
            "C[0] = math.sqrt(⟨1→2⟩ / n)"
        ],
    },
    "pyro_mdm/by_dimension/per_dimension.py": {
        "test_per_dimension.py::test_what_is_kept_is_of_the_matrices_that_were_loaded": [
            "⟨self.cells.forget()  # values of other matrices→pass⟩"
        ],
        "test_per_dimension.py::test_rates_are_derivatives_in_the_common_time[blocks]": [
            "self.rated(lambda block, t: block.dispersion(None, t), s, power=⟨0.5→1.0⟩)",
            "s: Times, power: float = ⟨1→0⟩.0\n",
        ],
    },
    "pyro_mdm/simulated/priors.py": {
        "test_priors.py::test_samples_are_quantiles[normal]": ["u = ⟨→-⟩_inverse(nodes)\n"],
    },
    "pyro_mdm/simulated/sde.py": {
        "test_nonlinear.py::test_a_step_of_the_sampler_is_that_of_the_reverse_sde": [
            "drift = drift ⟨-→+⟩ cast(StateNoise, self.diffusion)"
        ],
        "test_sde.py::test_drift_and_noise_are_those_of_the_diffusion[vpsde]": [
            "return ⟨→0.5 * ⟩(G @ white).squeeze(-1) - fold(drift.to(u.dtype))",
            "return y, (⟨T - →⟩t.double())",
            "drift = ⟨→-⟩self.diffusion.drift(y, s)\n",
        ],
    },
    "pyro_mdm/elbo.py": {
        (
            "test_context.py::"
            "test_gradients_of_a_discrete_context_are_unbiased_and_quieter_than_alone"
        ): ["for sign, draw in ((1, terms), (⟨-→⟩1, baseline)):"],
        "test_host_programs.py::test_score_function_gradients[global-registered]": [
            'costs.add((term.site["cond_indep_stack"], ⟨→-⟩sign * term.value.detach()))'
        ],
        "test_elbo.py::test_the_loss_without_the_decoder_is_a_bound_on_the_start[K1]": [
            "return 0.5 * (log_det + math.log(2 * math.pi)⟨ + 1→⟩)"
        ],
        "test_host_programs.py::test_a_discrete_site_s_own_divergence[global-registered]": [
            'return _Term(p, ⟨-→⟩scale_and_mask(kl, p["scale"], p["mask"]))'
        ],
        "test_elbo.py::test_elbo_terms_add_up_to_the_loss": [
            "return self.reconstruction - self.⟨prior_kl - self.→⟩diffusion - self.context"
        ],
        "test_elbo.py::test_gradient_to_the_diffusion_with_a_moving_end[exact-mdm]": [
            "value = kl.⟨prior + kl.→⟩diffusion"
        ],
    },
    "pyro_mdm/auxiliary/use.py": {
        "test_auxiliary.py::test_what_gaussian_data_lose_without_v_is_known": [
            "moved = white[:, :1] ⟨+→-⟩ (slope",
            "scale = ⟨weight * →⟩(end - start) * 0.5 / diffusion.way.rate_by_clock(s, W, g2)",
        ],
        "test_auxiliary.py::test_what_a_mixture_loses_without_v_is_known": [
            "without = term(⟨*blind→blind[0], blind[0]⟩)"
        ],
        "test_auxiliary.py::test_what_a_score_makes_of_noise_is_known": [
            "loss_z = -0.⟨5→25⟩ * term(apart, apart)"
        ],
        "test_auxiliary.py::test_information_is_that_of_gaussian_laws": [
            "nats = ⟨0.5 * →⟩torch.nn.functional.softplus(both)"
        ],
        "test_auxiliary.py::test_the_start_costs_what_its_posterior_is_off": [
            (
                "return torch.stack([⟨log_marginal.flatten(1).sum(1) - bound, alone→alone - "
                "bound, log_marginal.flatten(1).sum(1)⟩ - bound])"
            )
        ],
    },
    "pyro_mdm/evaluation/estimates.py": {
        "test_evaluation.py::test_holm": ["error_rate / ⟨(len(p_values) - rank)→len(p_values)⟩"],
        "test_few_values.py::test_its_errors_cover[population_error-2]": [
            "return ⟨factor * →⟩math.sqrt(monte_carlo_error**2"
        ],
    },
    "pyro_mdm/levels/discrete.py": {
        "test_denoisers.py::test_baseline_kl_by_quadrature[17]": [
            "return -(total + ⟨→0.5 * ⟩entropy) / weight",
            "return -(total + entropy) / weight⟨→ * 1.000001⟩",
        ]
    },
    "pyro_mdm/measurements/covariance.py": {
        "test_measurements.py::test_linear_estimates_have_the_covariance_of_gaussian_data": [
            "return prior / (1 + ⟨prior / noise→noise / prior⟩)",
            (
                "diagonal = self.⟨rest + self.vectors.square() @ (self.values - "
                "self.rest)→vectors.square() @ self.values⟩"
            ),
        ],
        "test_measurements.py::test_the_covariance_of_few_data_is_shrunk": [
            "square().sum() / n - square)⟨ / n→⟩"
        ],
        "test_windows.py::test_a_larger_image_has_the_covariance_of_its_windows": [
            ".reshape(variances.shape)⟨ / scale→⟩)"
        ],
    },
    "pyro_mdm/measurements/denoiser.py": {
        "test_measurements.py::test_the_denoiser_of_gaussian_data_is_exact[noise]": [
            "sites.log_p - ⟨0.5 * →⟩(rest * u)"
        ],
        "test_noise.py::test_a_gaussian_law_is_its_variance[inf-few]": [
            "return ⟨system.scaled(u)→u⟩, image"
        ],
    },
    "pyro_mdm/measurements/inverses.py": {
        (
            "test_measurement_systems.py::"
            "test_every_solver_gives_the_posterior_of_gaussian_data[factored-mask-full-one]"
        ): [
            "⟨(weighed * variance)→weighed⟩ @",
            "torch.addmm(⟨r @ self.inverse→0 * r⟩,",
        ],
        "test_measurement_systems.py::test_exact_observations_of_small_and_of_no_variance": [
            "torch.where(S.diagonal() ⟨>→>=⟩ 0",
            "S.diagonal().⟨rsqrt→sqrt⟩(), 0)",
        ],
        (
            "test_measurement_systems.py::"
            "test_every_solver_gives_the_posterior_of_gaussian_data[structured-blur-low rank-one]"
        ): ["⟨→0 * ⟩rest, pulled)"],
        (
            "test_measurement_systems.py::"
            "test_every_solver_gives_the_posterior_of_gaussian_data[structured-mask-diagonal-one]"
        ): ["system.scaled(variances.flatten(1)⟨ + system.noise→⟩))"],
        (
            "test_measurement_systems.py::"
            "test_woodburys_identity_serves_above_rounding[0.0-5e-10-False]"
        ): ["whole = values.⟨max→min⟩() * spectrum"],
        (
            "test_measurement_systems.py::"
            "test_woodburys_identity_serves_above_rounding[2e-09-0.0-False]"
        ): ["apart = rest ⟨*→/⟩ spectrum.squares + noise.flatten()"],
    },
    "pyro_mdm/measurements/laws.py": {
        "test_noise.py::test_sites_have_the_moments_of_their_law[laplace]": [
            "step.log()⟨ - 0.5 * (2 * math.pi * v).log()→⟩"
        ]
    },
    "pyro_mdm/measurements/solve.py": {
        "test_measurements.py::test_the_denoiser_of_gaussian_data_is_exact[noise]": [
            "return ⟨self._variance.to(gradient.dtype) * →⟩gradient"
        ],
        "test_measurements.py::test_systems_are_solved_each_with_its_own_steps": [
            "tolerance⟨**2→⟩ * first"
        ],
    },
    "pyro_mdm/evaluation/strata.py": {
        "test_strata.py::test_data_count_alike_in_folds_of_different_sizes": [
            "minlength=self.folds) / ⟨self.num_data→len(self._drawn)⟩",
            "return (⟨share→1 / self.folds⟩ / np.maximum(calls, 1))[self._fold]",
            "exists = self.counts[first] ⟨|→&⟩ self.counts[first if",
        ],
        "test_strata.py::test_the_error_of_a_sum_is_unbiased_in_groups_of_any_size": [
            "scaled = square⟨ * (size / np.maximum(size - 1, 1))[1:]→⟩",
            "alone = ⟨→0 * ⟩value**2 * (size == 1)",
        ],
        "test_strata.py::test_an_error_counts_the_larger_of_two_skewnesses": [
            "_allowance(⟨np.maximum(np.abs(skewness), foreseen_skewness)→foreseen_skewness⟩)",
            "_allowance(np.⟨maximum→minimum⟩(np.abs(skewness), foreseen_skewness))",
            "pooled = error**2 * N * N + foreseen**2⟨ * plan.num_draws→⟩",
        ],
        "test_strata.py::test_the_noise_of_data_is_that_of_their_draws[4]": [
            "torch.from_numpy(np.sqrt(squares)⟨ / self.width→⟩)",
            "np.maximum(square - total**2 / number, 0) / ⟨several→number⟩",
        ],
        "test_strata.py::test_a_datum_is_weighed_by_the_densities_of_its_own_rounds": [
            "value = left[use] / ⟨density[datum, self._cell[use]]→self._pooled_density()[use]⟩"
        ],
        "test_strata.py::test_draws_are_as_dense_as_the_deviation_of_what_is_left": [
            "importance = (self._left_of(targets) ** 2⟨ / need[:, None]→⟩).sum(0)",
            "return self._with_floor(⟨np.sqrt(variance)→variance⟩)",
        ],
        "test_strata.py::test_spread_and_skewness_that_a_plan_tells_are_those_of_the_noise": [
            "spread = error / ⟨self.num_draws**0.5→1⟩"
        ],
    },
    "pyro_mdm/measurements/looseness.py": {
        "test_gaps.py::test_both_sides_are_those_in_closed_form[vpsde]": [
            "chain.times), x⟨, path→⟩).cpu()",
        ],
        "test_gaps.py::test_more_weights_close_the_gap_around_the_evidence": [
            "torch.cat([exact[None], ⟨→exact[None] + 0 * ⟩noised[1:]])"
        ],
    },
    "pyro_mdm/measurements/twisted.py": {
        "test_gaps.py::test_an_exact_draw_stays_among_resampled_particles": [
            "(end - ⟨share→0⟩ * uniform)",
            "ancestors⟨.scatter(1, self._next, self.place)→⟩",
        ],
        "test_gaps.py::test_the_inverse_evidence_with_the_exact_draw_is_unbiased[gaussian]": [
            "⟨kept.states[i + 1] - mean[kept.rows]→mean[kept.rows] - kept.states[i + 1]⟩"
        ],
        (
            "test_measurements.py::"
            "test_twisted_particles_have_the_evidence_and_posterior_of_the_chain[vpsde]"
        ): [
            "-(apart * (noise + apart⟨ / 2→⟩))",
            "mean = log_w.logsumexp(1, keepdim=True)⟨ - math.log(P)→⟩",
        ],
        "test_measurements.py::test_twisted_particles_say_what_the_grid_adds[30]": [
            "scaled(1 / ⟨(ratio - 1)→ratio⟩)"
        ],
        "test_measurements.py::test_the_error_of_a_posterior_mean_is_that_of_repeats": [
            "⟨(R / (R - 1) * off.square().sum(0))→off.square().sum(0)⟩.sqrt()"
        ],
    },
    "pyro_mdm/paths/adams.py": {
        "test_adams.py::test_errors_fall_with_the_steps": [
            "ADAMS = (55 / 24, -59 / 24, 37 / 24, ⟨-→⟩9 / 24)",
            "ENDS = (⟨3 / 8, 7 / 6, 23 / 24→1 / 2, 1.0, 1.0⟩)",
        ],
        "test_adams.py::test_derivatives_are_those_of_the_recorded_steps[4]": [
            "moved = sum((back[node] for node in following), ⟨→0 * ⟩earlier[i])",
            "⟨range(1, 1 + len(HEUN))→[1]⟩ if i == 0 else []",
            "torch.autograd.grad(both, start, (of_end, ⟨→0 * ⟩of_gained), create_graph=True)",
        ],
    },
    "pyro_mdm/paths/flow.py": {
        "test_adams.py::test_gradients_are_those_of_the_values[own x_hat]": [
            "/ scale⟨ - pull * w→⟩"
        ],
        "test_per_dimension.py::test_the_flow_without_a_score_is_that_of_the_drift": [
            "(trace.flatten(1)⟨.mean(1)→[:, 0]⟩ if trace.dim() > s.dim() else trace)"
        ],
        "test_per_dimension.py::test_the_flow_and_the_bound_on_a_state_know_its_density[clocks]": [
            "return log_snr.to(u.device), ⟨-→⟩rate.to(u.device)"
        ],
        "test_distribution.py::test_flow_is_the_density_and_its_gradient[VPSDE]": [
            "⟨+→-⟩ scale.expand_as(z[0]).log().sum()"
        ],
        "test_likelihood_methods.py::test_probes_are_unbiased_for_the_density_of_the_flow": [
            "return v, of_drift.to(of_score) - ⟨0.5 * →⟩of_score"
        ],
        "test_likelihood_methods.py::test_the_density_of_the_flow_is_a_density": [
            "v = apply_matrix(A, y) - ⟨0.5 * →⟩apply_matrix("
        ],
    },
    "pyro_mdm/paths/likelihood.py": {
        "test_posterior_guide.py::test_draws_have_the_density_of_their_own_law": [
            "decoded.double() ⟨-→+⟩ noising.log_prob(path), flow.calls"
        ],
        "test_likelihood_methods.py::test_log_prob_of_weights_is_the_log_of_their_mean": [
            "⟨log_mean_weight(estimates) if self.is_exact else →⟩estimates.mean(0)"
        ],
    },
    "pyro_mdm/posteriors/calibration.py": {
        "test_amortized.py::test_ranks_are_uniform_where_draws_repeat": [
            "(places * ⟨(equal + 1)→equal⟩).long()"
        ],
        "test_amortized.py::test_ranks_are_of_other_simulations_than_those_of_training": [
            "seed=⟨NEW_SEED + →⟩seed"
        ],
        "test_amortized.py::test_p_values_are_those_of_scipy": ["⟨(bins - 1)→bins⟩ / 2"],
    },
    "pyro_mdm/posteriors/checks.py": {
        "test_posterior_checks.py::test_regions_of_the_exact_posterior_hold_what_they_say": [
            "ranks(⟨-log_p[:, 1:].mT, -→log_p[:, 1:].mT, ⟩log_p[:, 0])"
        ]
    },
    "pyro_mdm/posteriors/encoding.py": {
        "test_amortized.py::test_residuals_given_a_part_of_the_data_are_standard": [
            "return C⟨ - gain @ C→⟩, which"
        ]
    },
    "pyro_mdm/posteriors/gaussian.py": {
        "test_amortized_likelihood.py::test_densities_integrate_to_one": [
            ".unsqueeze(1), ⟨-→⟩log_scale.sum(1)"
        ],
        (
            "test_amortized_likelihood.py::"
            "test_a_network_can_have_the_distribution_of_a_linear_gaussian"
        ): [
            "linear.weight[0] ⟨- linear.center @ slope→⟩, scale",
            "linalg.inv(linear.root)⟨ * scale.unsqueeze(1)→⟩  # 1 + L",
        ],
    },
    "pyro_mdm/posteriors/guide.py": {
        "test_posterior_guide.py::test_weights_make_a_bad_posterior_exact": [
            "_flow_density(model, z, y) ⟨+→-⟩ coordinates(theta)"
        ],
    },
    "pyro_mdm/posteriors/joint.py": {
        "test_joint.py::test_it_starts_as_all_conditionals_of_a_gaussian": [
            "numbers = self.tails.inverse(z) * self.unit⟨ + self.center→⟩"
        ],
        "test_joint.py::test_values_that_are_given_stay_and_others_keep_their_support": [
            "torch.where(values[k].isnan(), ⟨v, values[k]→values[k], v⟩)"
        ],
        "test_joint.py::test_values_that_no_draw_has_are_refused": [
            "⟨if transform.domain.event_dim and→if False and⟩ bool(absent.any())"
        ],
    },
    "pyro_mdm/posteriors/laws.py": {
        (
            "test_amortized_likelihood.py::"
            "test_the_likelihood_of_linear_gaussian_data_is_exact_without_steps"
        ): [
            "if linear is ⟨not None→None⟩:",
        ],
        "test_amortized_likelihood.py::test_numbers_inside_of_bounds_have_a_density_there_alone": [
            "(⟨width - →-⟩(above + below))"
        ],
        "test_misfit.py::test_a_misfit_is_the_gain_of_a_richer_form_times_the_data": [
            "self.gain.interval[⟨1→0⟩]"
        ],
        "test_heavy_tails.py::test_densities_of_heavy_tails_are_near_exact_ones[cauchy-alone]": [
            "return z, log_det⟨ + of_tails→⟩ - self.unit"
        ],
        "test_heavy_tails.py::test_draws_and_folders_keep_heavy_tails": [
            "⟨self.tails.inverse→⟩(self.gaussian.data(r, theta))"
        ],
    },
    "pyro_mdm/posteriors/likelihood.py": {
        (
            "test_amortized_likelihood.py::"
            "test_given_parameters_count_as_known[below-theta-no data]"
        ): ["self._log_prob(x, values)⟨ + law.log_given(values)→⟩"],
        "test_amortized_likelihood.py::test_draws_share_no_memory_with_given_parameters": [
            "{name: value⟨.clone()→⟩ for name, value in law.values(chosen).items()}"
        ],
    },
    "pyro_mdm/support/measured.py": {
        "test_few_values.py::test_its_errors_cover[Measured-4]": [
            "values.std() * ⟨student_factor(n - 1) / →1 / ⟩math.sqrt(n)"
        ],
    },
    "pyro_mdm/distribution.py": {
        "test_flow_mass.py::test_its_mass_is_1_and_no_mean_is_off[two, narrower-9.0]": [
            "if off < AGREE⟨ and low > -MEAN and high < MEAN→⟩:"
        ],
    },
    "pyro_mdm/posteriors/autoregressive.py": {
        "test_amortized_likelihood.py::test_densities_integrate_to_one": [
            "Masked(degree ⟨<→<=⟩ asked.unsqueeze(1))"
        ]
    },
    "pyro_mdm/posteriors/factor.py": {
        "test_misfit.py::test_a_factor_that_is_off_is_calibrated_on_simulations": [
            "inputs.mT @ (⟨is_first - p→p - is_first⟩)"
        ]
    },
    "pyro_mdm/posteriors/independence.py": {
        "test_posterior_reading.py::test_what_is_computed_from_draws_needs_no_word": [
            "return ⟨not →⟩self._is_same(name, reference, run_holding"
        ]
    },
    "pyro_mdm/posteriors/members.py": {
        "test_misfit.py::test_a_misfit_is_the_gain_of_a_richer_form_times_the_data": [
            "return low, high⟨ + self.misfit→⟩"
        ],
        "test_likelihood_errors.py::test_the_evidence_of_any_program_has_both_errors": [
            "error * math.sqrt(M ⟨+→-⟩ 1)"
        ],
    },
    "pyro_mdm/posteriors/predictive.py": {
        "test_likelihood_errors.py::test_a_place_between_all_simulations_is_outside": [
            "near).amin(1) ⟨>→<⟩ usual.max()"
        ],
        (
            "test_posterior_checks.py::"
            "test_p_values_are_uniform_for_simulations_and_small_for_odd_data"
        ): ["⟨(1 + farther.double()) / (1 + self.compared)→farther.double() / self.compared⟩"],
    },
    "pyro_mdm/posteriors/prior.py": {
        (
            "test_amortized_likelihood.py::"
            "test_given_parameters_and_others_have_the_densities_of_their_sites[of_simplex-a]"
        ): ["log_p ⟨+→-⟩ log_det", "sites=⟨self._given→None⟩)"],
        (
            "test_amortized_likelihood.py::"
            "test_given_parameters_and_others_have_the_densities_of_their_sites[by_branches-a]"
        ): ["run.log_probs[name].sum() for name in ⟨sites→self._shapes⟩])"],
    },
    "pyro_mdm/posteriors/reading.py": {
        "test_amortized.py::test_a_density_is_of_the_parameters_as_they_are": [
            "⟨-→⟩log_det.reshape(len(u), -1).sum(1)"
        ]
    },
    "pyro_mdm/posteriors/simulation.py": {
        "test_saved.py::test_a_change_elsewhere_is_noticed": [
            "if ⟨not _alike(then, now.values)→False⟩:"
        ],
        "test_simulation_workers.py::test_each_run_has_draws_of_its_own_whatever_the_batches": [
            "_seeded(plan.seed, ⟨run→place⟩, given"
        ],
        "test_simulation_workers.py::"
        "test_runs_in_a_plate_are_at_vectors_outside_the_plates_of_a_program": [
            'absent = max(0, ⟨deepest + →⟩nodes[name]["fn"].event_dim'
        ],
    },
    "pyro_mdm/posteriors/site.py": {
        "test_likelihood_sites.py::test_parameters_that_are_no_numbers_are_impossible": [
            "v.nan_to_num(nan=⟨math.inf→0.0⟩,"
        ]
    },
    "pyro_mdm/posteriors/tails.py": {
        "test_heavy_tails.py::test_the_map_of_heavy_tails_has_its_determinant_and_its_inverse": [
            "torch.where(self.bent, ⟨-→⟩log_cosh"
        ]
    },
    "pyro_mdm/evaluation/tempering.py": {
        "test_amortized_likelihood.py::test_moves_by_gradients_have_the_exact_posterior": [
            "lost = (energy ⟨-→+⟩ p.square()"
        ],
        "test_amortized_likelihood.py::test_tempering_finds_all_modes_and_the_constant": [
            "step.logsumexp(1)⟨ - math.log(step.shape[1])→⟩"
        ],
    },
    "pyro_mdm/posteriors/training.py": {
        "test_budgets.py::test_more_simulations_are_learned_from_in_more_steps": [
            "steps * max(⟨ratio→ratio * ratio⟩, math.sqrt(ratio))",
            "steps * max(ratio, ⟨math.sqrt(ratio)→ratio⟩)",
        ]
    },
    "pyro_mdm/samplers/stochastic.py": {
        "test_sampler_orders.py::test_every_sampler_has_its_weak_order[ancestral-vpsde]": [
            "kernel.mean_coefficient.unsqueeze(-1), ⟨→1.1 * ⟩kernel.scale_tril]"
        ],
        "test_nonlinear.py::test_a_step_of_the_sampler_is_that_of_the_reverse_sde": [
            "ask.diffusion.paths.velocity(y, s, ⟨1→0⟩.0, ask)"
        ],
        "test_sampler_orders.py::test_every_sampler_has_its_weak_order[euler_maruyama-vpsde]": [
            "root = ⟨→2**0.5 * ⟩h.sqrt() * diffusion.dispersion(None, s)"
        ],
        "test_sampler_orders.py::test_every_sampler_has_its_weak_order[splitting_1-vpsde]": [
            "⟨→0.5 * ⟩apply_matrix(at.second_root, noise())"
        ],
        "test_sampler_orders.py::test_every_sampler_has_its_weak_order[splitting_2-vpsde0]": [
            "y + velocity(y)⟨ / 2→⟩)"
        ],
    },
    "pyro_mdm/conditioning/guided.py": {
        "test_given_context.py::test_guidance_is_a_straight_line_between_two_scores": [
            "return free + ⟨self.weight→(self.weight + 1)⟩ * (given - free)"
        ]
    },
    "pyro_mdm/samplers/exponential.py": {
        "test_per_dimension.py::test_one_variable_needs_no_factorization": [
            "m = (1 + noise) ⟨/ 2 →⟩* volume"
        ]
    },
    "pyro_mdm/compiled.py": {
        "test_compiled.py::test_the_loss_is_one_graph[cld-True-None]": [
            "term = ⟨constants.width * →⟩term.double()"
        ],
        "test_compiled.py::test_the_loss_is_one_graph[noise-True-None]": [
            "term = ⟨constants.width * →⟩error_by_log_volume("
        ],
    },
    "pyro_mdm/samplers/probability_flow.py": {
        "test_sampler_orders.py::test_every_sampler_has_its_weak_order[flow_heun-vpsde]": [
            "parts = [eye.expand_as(A[1:]), eye + h * A[⟨1:→:-1⟩], -h * half[1:]]"
        ]
    },
    "pyro_mdm/scores/base.py": {
        (
            "test_scores.py::"
            "test_importance_times_have_the_density_of_vpsde_and_leave_the_mean[vpsde]"
        ): ["value = ⟨clock_rate.to(x.device) * →⟩_error("],
        "test_elbo.py::test_parameterizations_agree[K1]": ["return ⟨0.5 * →⟩square, at.whitener"],
        (
            "test_linear_laws.py::"
            "test_scores_of_the_state_are_well_scaled_and_see_one_diffusion[RawScore]"
        ): ["units = (marginal.mean.square() ⟨+ variance→⟩).rsqrt()"],
    },
    "pyro_mdm/scores/denoiser.py": {
        (
            "test_learned_ends.py::"
            "test_the_gradient_of_the_whole_bound_is_that_of_the_closed_form[constant-given]"
        ): ["estimate = estimate ⟨+→-⟩ sign * change * (boundary"],
        "test_missing.py::test_the_term_at_random_maps_is_that_of_what_is_there[independent]": [
            "if self.⟨training and self.→⟩_training_maps is not None:"
        ],
        "test_conditioning.py::test_the_baseline_counts_what_is_generated": [
            "return -0.5 * ⟨of_counted(terms, counted)→terms⟩.flatten(batch_dim).sum(-1)"
        ],
    },
    "pyro_mdm/conditioning/maps.py": {
        "test_missing.py::test_the_term_at_random_maps_is_that_of_what_is_there[levels]": [
            "weight = (⟨0.5 * →⟩drawn.weight * log_snr.exp()).to(x.dtype)"
        ],
    },
    "pyro_mdm/levels/denoiser.py": {
        "test_denoisers.py::test_discrete_denoiser_is_bayes_rule_with_a_tilted_prior[17-tilt]": [
            "⟨0.5 * →⟩torch.tanh(2 * F2))"
        ]
    },
    "pyro_mdm/scores/raw.py": {
        (
            "test_linear_laws.py::"
            "test_scores_of_the_state_are_well_scaled_and_see_one_diffusion[RawScore]"
        ): [
            "return ⟨scale_variables(units, →(⟩call_on_state(self, scale_variables(units, y), at))"
        ],
        "test_scores.py::test_projection_recovers_the_denoiser_from_the_exact_score[malda-True]": [
            "apply_matrix(-at.whitener⟨.mT→⟩, eps)"
        ],
    },
    "pyro_mdm/seeing/data_driven.py": {
        "test_driven.py::test_paths_have_the_marginals_that_they_are_made_for": [
            "flow = self.mean + ⟨2 * →⟩self.mean_rate + self.stretch_rate"
        ],
        "test_driven.py::test_raw_scores_and_denoisers_have_one_loss": [
            "over = (⟨0.5 * →⟩lam.exp() / (alpha * rho), rho)"
        ],
    },
    "pyro_mdm/seeing/encoded.py": {
        "test_encoded.py::test_paths_are_those_of_the_base_from_an_encoding[cld]": [
            "return M[..., ⟨1:→:-1⟩]"
        ]
    },
    "pyro_mdm/simulated/nonlinear.py": {
        "test_nonlinear.py::test_a_step_of_the_sampler_is_that_of_the_reverse_sde": [
            "ask.score(y, at))⟨ + diffusion.noise_divergence(y, at).double()→⟩"
        ],
    },
    "pyro_mdm/simulated/hamiltonian.py": {
        "test_hamiltonian.py::test_noise_divergence_is_that_of_the_root[state_noise_1]": [
            "(⟨2 * →⟩rate * matrix_divergence(self.D(state), state))"
        ],
        "test_hamiltonian.py::test_correction_by_hand": [
            "return ⟨→0.5 * ⟩matrix_divergence(sum(blocks[1:], blocks[0]), state)"
        ],
    },
    "pyro_mdm/simulated/path_integral.py": {
        "test_simulation.py::test_the_integrand_is_the_implicit_bound_s[0.0-Cubic]": [
            "((⟨0.5 * →⟩white + rest) * white)",
            "Trace(of_current.value ⟨+→-⟩ along, of_current.variance)",
        ],
        "test_simulation.py::test_local_dsm_has_the_expectation_of_ism[Cubic]": [
            "trace = ⟨0.5 * →⟩((plus - minus) * xi)"
        ],
        "test_simulation.py::test_times_are_weighted_by_what_is_left_out[1]": [
            "weight = ⟨1 / diffusion.progress_rate→torch.ones_like⟩(s)"
        ],
    },
    "pyro_mdm/tables/chained.py": {
        "test_chained.py::test_a_line_goes_on_beyond_what_is_there_by_half_of_its_range_at_most": [
            "reach = REACH⟨→ * 9⟩ * np.ptp(y)"
        ],
        "test_chained.py::test_completed_rows_have_the_law_of_whole_rows[line-0.15]": [
            "np.clip(⟨line.predict(new) + →⟩residual[donors]"
        ],
        "test_chained.py::test_completed_rows_have_the_law_of_whole_rows[skewed-0.15]": [
            "np.clip(line.predict(new)⟨ + residual[donors]→⟩"
        ],
    },
    "pyro_mdm/tables/columns/fitting.py": {
        "test_chained.py::test_scales_of_completed_rows_keep_atoms_ends_and_decimals[said0]": [
            "if ⟨_atoms(whole) == _atoms(numbers)→True⟩:"
        ],
        "test_chained.py::test_scales_of_columns_are_those_of_whole_rows": [
            "⟨values[np.flatnonzero(train)[gone.numpy()]] = whole_codes[gone].numpy()→pass⟩"
        ],
    },
    "pyro_mdm/tables/covariance.py": {
        "test_mixed.py::test_moments_of_incomplete_rows_are_those_of_the_law": [
            "⟨→0 * ⟩covariance * times[:, None, None]"
        ],
        "test_table_network.py::test_a_level_that_few_rows_have_does_not_stop_the_start": [
            "⟨(number * S + best * variance.diag()) / (number + best)→S⟩"
        ],
    },
    "pyro_mdm/tables/denoiser.py": {
        (
            "test_table_network.py::"
            "test_it_starts_right_where_what_is_missing_depends_on_what_is_there"
        ): ["⟨(mean - score.data_mean) / scale→None⟩"],
        "test_mixed.py::test_a_network_of_no_opinion_has_the_bound_of_independent_columns[True]": [
            "edges[:, columns[here]⟨ - start→⟩]"
        ],
    },
    "pyro_mdm/support/files.py": {
        "test_saved.py::test_files_of_one_writing_are_never_beside_those_of_an_earlier_one": [
            "for path in ⟨paths[1:]→[]⟩:"
        ],
    },
    "pyro_mdm/pretrained.py": {
        "test_saved.py::test_a_model_of_another_step_than_the_newest_checkpoint_is_refused": [
            "⟨read_saved(file, CHECKPOINT)→continue⟩"
        ],
    },
    "pyro_mdm/support/saved.py": {
        "test_saved.py::test_any_flipped_bit_is_refused[model]": [
            "⟨not data[8:].startswith(START) or data[SEAL] != seal.encode()→False⟩:"
        ],
        "test_saved.py::test_a_file_of_another_kind_is_refused[likelihood]": [
            'if ⟨described["kind"] != kind→False⟩:'
        ],
        "test_reliability.py::test_no_reader_of_a_run_folder_runs_what_it_reads": [
            '⟨safetensors.torch.load(data)→__import__("pickle").loads(data)⟩)'
        ],
        "test_reliability.py::test_the_code_unpickles_nothing": [
            "⟨safetensors.torch.load(data)→torch.load(path, weights_only=False)⟩)"
        ],
    },
    "pyro_mdm/tables/network.py": {
        "test_table_network.py::test_the_flow_of_a_gaussian_table_has_its_density": [
            "return out + start.⟨→detach().⟩to(out.dtype)"
        ],
        "test_mixed.py::test_a_map_network_starts_at_the_gaussian_law": [
            "(offset + mean⟨ - a * i→⟩)"
        ],
        "test_table_network.py::test_logits_start_as_bayes_rule_by_the_gaussian_law[0]": [
            "G = V.mT @ JV⟨ - without @ JV_b→⟩",
            "quadratic = ⟨0.5 * →⟩(inverse @ G)",
            "_inverse(one ⟨-→+⟩ G @ R_b)",
        ],
        "test_table_network.py::test_chances_are_posteriors_by_the_noise_of_one_column": [
            "odds = odds - ⟨0.5 * →⟩(a.square() / q)"
        ],
        "test_table_network.py::test_members_share_a_batch_in_training_and_are_averaged_else": [
            "range(M)])⟨.argsort()→⟩"
        ],
        "test_table_network.py::test_waves_are_of_the_values_that_are_shown_and_zero_elsewhere": [
            "angles.cos()⟨ * shown→⟩"
        ],
    },
    "pyro_mdm/tables/one_hot.py": {
        "test_mixed.py::test_the_divergence_of_categories[0.0]": [
            "log_other.sum(1, keepdim=True)⟨ - log_other→⟩",
            "return ⟨log_prior.flatten().to(z.dtype) + →⟩snr",
        ]
    },
    "pyro_mdm/tables/training.py": {
        "test_library_table.py::test_it_is_the_training_of_the_programs[options1]": [
            "loss = loss_of(x)⟨ / numbers→⟩"
        ],
        "test_library_table.py::test_training_ends_where_nothing_is_learned": [
            "patience=⟨schedule.patience→None⟩ if",
            "if ⟨keeps→False⟩:\n            look()",
        ],
    },
    "pyro_mdm/training/averages.py": {
        "test_trainer.py::test_the_average_follows_at_first_and_smooths_later[10]": [
            "⟨(1 + number)→number⟩ / (self.forgetting + number)"
        ],
    },
    "pyro_mdm/training/schedules.py": {
        "test_budgets.py::test_falls_below_the_least_gain_do_not_count_together_they_do": [
            "value <⟨= self.lowest - least→ self.lowest⟩ if least else"
        ],
        "test_trainer.py::test_means_of_windows_are_compared_by_their_errors": [
            "if len(losses) > ⟨1→0⟩:",
            "⟨max→min⟩(error, self.least_gain)",
            "float(losses.std()) / ⟨math.sqrt(len(losses))→len(losses)⟩",
        ],
        "test_trainer.py::test_rates_warm_up_and_fall_to_nothing": [
            "⟨0.5 * →⟩(1 + math.cos(math.pi * min(1.0, share)))",
            "math.pi * ⟨min(1.0, share)→share⟩",
        ],
        "test_trainer.py::test_rates_are_of_the_steps_or_of_the_seconds": [
            "min(1.0, ⟨max→min⟩((step + 1) / max(1, warmup)",
            "share / ⟨→2 / ⟩RISE",
            "return ⟨min→max⟩(risen *",
            "min(⟨risen * →⟩_decayed(step",
            ", _decayed(⟨share→0.5 * share⟩, decay))",
        ],
        "test_trainer.py::test_rates_are_a_rise_times_half_a_wave": [
            "min(1.0, max(⟨(step + 1)→step⟩ / max(1, warmup)"
        ],
    },
    "pyro_mdm/training/trainer.py": {
        "test_budgets.py::test_seconds_end_after_the_steps_that_fit[None]": [
            "self.step_number, self.share_of_time >⟨=→⟩ 1"
        ],
        "test_budgets.py::test_a_training_that_died_keeps_its_budget": [
            'spent=⟨state["seconds"]→0.0⟩'
        ],
        "test_budgets.py::test_rates_cool_down_after_the_last_gain": [
            "factor *= ⟨schedule(self.step_number - first, number)→1.0⟩"
        ],
        "test_trainer.py::test_a_killed_training_goes_on_to_the_same_weights[True]": [
            'self._random = state["best_tensors"], ⟨state["random"]→[]⟩'
        ],
        "test_trainer.py::test_the_best_weights_are_left_with_their_buffers": [
            "better = value <⟨ self.best→= value⟩",
            "for t in (*self._averages, *⟨self._buffers→map(torch.zeros_like, self._buffers)⟩)",
        ],
        "test_trainer.py::test_a_step_is_that_of_the_optimizer_on_a_clipped_gradient": [
            "nn.utils.clip_grad_norm_(self.weights, ⟨→2 * ⟩self.clip)"
        ],
    },
    "tests/benchmarks/arena/classifiers.py": {
        "test_arena_rules.py::test_losses_are_compared_with_the_least_that_there_was": [
            "least = ⟨np.minimum(least, losses)→losses⟩"
        ],
        "test_arena_rules.py::test_the_steps_of_classifiers_are_those_of_scikit_learn": [
            "losses = ⟨0.5 * →⟩np.einsum",
            "back *= ⟨outputs > 0→1⟩",
            "* ⟨(1 - SECOND**self.steps) ** 0.5 / →⟩(1 - FIRST**self.steps)",
        ],
    },
    "tests/benchmarks/minibatches/programs.py": {
        "test_minibatches.py::test_particles_have_a_dimension_outside_of_the_rows[student]": [
            "mean = ⟨(X[rows] * theta).sum(-1)→X[rows] @ theta⟩"
        ],
        "test_minibatches.py::test_the_evidence_of_normal_rows_is_a_density_of_low_rank": [
            "torch.log(⟨OF_MEAN**2 * →⟩precision)"
        ],
        "test_minibatches.py::test_the_evidence_of_schools_is_an_integral_over_both_globals": [
            "log_prob(scale)⟨ + log_scale→⟩\n    return"
        ],
    },
    "tests/benchmarks/partial/references.py": {
        "test_partial.py::test_draws_on_a_grid_are_those_of_a_gaussian_tree": [
            "below[up] += ⟨(between + below[j])→between⟩.logsumexp(1)"
        ],
        "test_partial.py::test_the_weight_of_a_covariance_is_an_integral_over_means[known1]": [
            "log_weight + ⟨0.5→1.0⟩ * half.square()",
            "log_weight = ⟨0.5→1.0⟩ * k * torch.logdet",
            "rest = data⟨ - known→⟩",
        ],
    },
}
