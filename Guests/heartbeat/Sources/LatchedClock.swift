/// Reads a clock of 64 bits by halves, where a reading of the low half keeps the high one to be read next, for all harts
/// together. Another hart's reading between ours puts its own high half there: the next one, if the low half has begun anew in
/// between, and the time would be 4.29 s too late. A low half that has not begun anew says that it has not.
func readLatchedClock(low: () -> UInt32, high: () -> UInt32) -> UInt64 {
    while true {
        let first = low()
        let upper = high()
        if low() >= first { return UInt64(upper) << 32 | UInt64(first) }
    }
}
