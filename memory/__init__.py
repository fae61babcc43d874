"""Memories behind one contract: neural sequence memories and external stores."""
