"""Ports: how frames reach a wire. The engine knows none of them; see docs/ports.md."""
