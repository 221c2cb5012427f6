"""From a network to a plan: the ops of its programs, with every buffer placed."""
