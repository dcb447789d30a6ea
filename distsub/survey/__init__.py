"""A person's data and model before a sweep is written, and the sweep file proposed for them."""
