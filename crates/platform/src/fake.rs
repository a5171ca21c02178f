//! A scripted machine, being built.
