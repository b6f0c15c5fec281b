"""What several test files share: checkpoints, a hub, the command line, toys to plan, blocks to run, and what is long."""
