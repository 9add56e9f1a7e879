"""The mathematics: noise schedules, what a network predicts, samplers. No files, no recipes."""
