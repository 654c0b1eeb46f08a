"""The command line, installed as ``relex_codec.cli``: one file a command, each parses, calls and prints."""
