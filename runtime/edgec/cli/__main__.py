"""``python -m edgec.cli``, for where the ``edgec`` command is not on the path."""

from edgec.cli import main

if __name__ == "__main__":
    main()
