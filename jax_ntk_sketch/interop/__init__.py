"""Bridges to other libraries, which are imported when a bridge is used."""
