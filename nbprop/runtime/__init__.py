"""The walk: compiled entries check a call's arguments and run a plan's ops, on one thread or several."""
