"""Declared settings, YAML files and flags, which become one frozen `Config`; each setting itself is declared beside its code."""
