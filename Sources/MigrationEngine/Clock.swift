import GuestTime

/// The host's monotonic clock in nanoseconds.
func now() -> UInt64 { UInt64(max(0, VirtualClock.hostNanoseconds())) }
