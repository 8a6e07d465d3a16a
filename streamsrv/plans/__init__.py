"""The parts of every retrieve answer: the selected instances, their payloads, and their framing."""
