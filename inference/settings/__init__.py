"""Options and names, and the data, diffusion and plan that are made of them."""
