# Reset entry of the heartbeat guest: machine mode, a0 = hart, a1 = address of the device tree.
    .section .text.start, "ax"
    .global _start
_start:
    csrw    mie, zero
    la      t0, trap
    csrw    mtvec, t0
    csrr    s0, mhartid             # not a0: some loaders leave it alone on the other harts
    mv      s1, a1
    li      t0, 8                   # more harts than the guest knows: parked
    bgeu    s0, t0, park
    la      sp, stacks              # 8 KiB each
    addi    t0, s0, 1
    slli    t0, t0, 13
    add     sp, sp, t0
    bnez    s0, secondary
    la      t0, zeroed_start
    la      t1, zeroed_end
1:  bgeu    t0, t1, 2f
    sd      zero, 0(t0)
    addi    t0, t0, 8
    j       1b
2:  mv      a0, s1
    call    heartbeat_main
    j       park
secondary:
    # Released by hart 0's "go" word, which lies outside the zeroed part; hart 0 writes a value no reset leaves there.
    la      t0, go
    li      t2, 0x676f21
1:  lw      t1, 0(t0)
    beq     t1, t2, 2f
    .insn i 0x0f, 0, x0, x0, 0x010  # pause
    j       1b
2:  fence   rw, rw
    mv      a0, s0
    call    heartbeat_worker
park:
    wfi
    j       park

    .balign 4
trap:
    csrr    a0, mcause
    csrr    a1, mepc
    csrr    a2, mtval
    csrr    a3, mhartid
    call    heartbeat_trapped
    j       park

    # The compiler calls these for plain assignments.
    .section .text.memset, "ax"
    .global memset
memset:
    add     a2, a0, a2
    mv      t0, a0
1:  bgeu    t0, a2, 2f
    sb      a1, 0(t0)
    addi    t0, t0, 1
    j       1b
2:  ret

    .section .text.memcpy, "ax"
    .global memcpy
    .global memmove
memcpy:
memmove:
    add     t1, a1, a2
    mv      t0, a0
    bltu    a1, a0, 3f
1:  bgeu    a1, t1, 2f
    lb      t2, 0(a1)
    sb      t2, 0(t0)
    addi    a1, a1, 1
    addi    t0, t0, 1
    j       1b
2:  ret
3:  add     t0, a0, a2              # backwards: the target may overlap the end of the source
4:  bgeu    a1, t1, 2b
    addi    t1, t1, -1
    addi    t0, t0, -1
    lb      t2, 0(t1)
    sb      t2, 0(t0)
    j       4b

    .section .data.go, "aw"
    .balign 4
    .global go
go: .word   0

    .section .bss.stacks, "aw", @nobits
    .balign 16
stacks:
    .skip   8 * 8192
