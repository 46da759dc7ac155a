"""``python -m das3d``."""

from das3d.cli import main

main()
