"""From a checked request to a finished picture: schedules, samplers, guidance, styles."""
