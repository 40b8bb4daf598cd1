"""The bridge inside vLLM, through vLLM's own extension points; the only place that knows vLLM."""
