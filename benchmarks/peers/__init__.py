"""The libraries that are asked and timed beside jaxce, each called as its documentation says."""
