"""Browsers of people: cookies, sessions, the sign-in, share links."""
