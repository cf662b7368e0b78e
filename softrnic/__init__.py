"""softrnic: a complete RoCEv2 NIC in user space."""
