"""Programs for those who work on the studio; the package needs none of them and a wheel holds none."""
