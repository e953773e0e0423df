"""The version, which is part of every environment fingerprint."""

VERSION = "0.3.0"
