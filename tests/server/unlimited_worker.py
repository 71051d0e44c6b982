"""A decoder as it is on a system without limits of the kernel."""

from __future__ import annotations

from server.images.workers import worker as picture_worker

picture_worker.KERNEL_LIMITS = False

if __name__ == "__main__":
    picture_worker.main()
