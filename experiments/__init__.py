"""The built-in experiments: one short file each, `get_config() -> ConfigDict`."""
