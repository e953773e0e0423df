"""What `scripts/endure` is made of: kills, many engines at once, full disks and broken calls."""
