"""Real servers under the same offered load: traces, a load generator, measures, a report."""
