"""From a file to a run: `session.train` makes a run folder (`request`) and trains its models (`trainer`)."""
