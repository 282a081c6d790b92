"""What the user asks for: commands, plans, the journalled migration and its agent."""
