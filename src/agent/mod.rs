//! The agent's shell: one loop that owns every core, dumb IO tasks, the local API, state on disk, health.
