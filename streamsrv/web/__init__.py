"""The thin skin of Tornado handlers: the only room that imports tornado, the only `async def`."""
