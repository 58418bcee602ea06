"""What is wrong with an experiment."""

__all__ = ["ConfigError"]


class ConfigError(ValueError):
    """An experiment that cannot be read or built; the message is one line that names the field or the file."""
