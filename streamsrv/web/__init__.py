"""HTTP with Tornado. Only this room imports tornado or has an `async def`."""
