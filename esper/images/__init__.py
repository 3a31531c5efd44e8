"""Image files without torch: listed, digested, decoded and cached, also by processes that must start at once."""
