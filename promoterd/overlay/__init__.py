"""All that is known of overlayfs, and nothing of policy."""
