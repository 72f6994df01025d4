//! Menshen 门神: a GB/T 28181 video-surveillance gateway.
