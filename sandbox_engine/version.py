"""The version, which is part of every environment fingerprint."""

VERSION = "0.2.0"
