"""Where a statistic comes from: one file for each answer that has been published, and what sites ask of them."""
