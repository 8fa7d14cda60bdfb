# Entry of the benchmark programs: machine mode, one hart; the others wait for ever.
    .section .text.start, "ax"
    .global _start
_start:
    csrr    t0, mhartid
    bnez    t0, park
    la      t0, failed
    csrw    mtvec, t0
    la      sp, stack_top
    la      t0, zeroed_start
    la      t1, zeroed_end
1:  bgeu    t0, t1, 2f
    sd      zero, 0(t0)
    addi    t0, t0, 8
    j       1b
2:  call    benchmark_main
park:
    wfi
    j       park
    .balign 4
failed:                             # a trap: status 1 by the test finisher
    li      t0, 0x100000
    li      t1, 0x13333
    sw      t1, 0(t0)
    j       park

    .section .bss.stack, "aw", @nobits
    .balign 16
    .skip   65536
stack_top:
