"""``python -m relex_codec``: the command line, where its script is not on the PATH."""

from relex_codec.cli.main import main

if __name__ == "__main__":
    main()
