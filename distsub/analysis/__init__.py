"""What the rows mean: tables computed from them, nothing measured here."""
