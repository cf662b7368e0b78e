"""On-demand paging in real time: a resolver over userfaultfd and madvise, post-copy, CPU-side dirty pages."""
