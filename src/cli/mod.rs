//! The command line: commands and their output, as text and as JSON.
