"""From a file to a run: `session.train` makes a run folder (`run_setup`) and trains its models (`trainer`)."""
