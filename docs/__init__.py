"""The documentation: ``python -m docs`` builds its pages, docs/conf.py says how."""
