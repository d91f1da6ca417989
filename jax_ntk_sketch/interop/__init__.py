"""Bridges to other libraries; each is imported only when its bridge is used."""
