//! One daemon per state folder.
