/* A Cortex-M4 without an operating system, as qemu's mps2-an386 is one: vectors, memory, and a way to end with a code. */
#include <stdint.h>

extern uint32_t stack_top, data_start, data_end, data_source, bss_start, bss_end;
int main(void);

/* Tell the host, by semihosting's SYS_EXIT_EXTENDED, that the program has ended with a code. */
static void end(int code)
{
    const uint32_t reason[2] = {0x20026, (uint32_t)code};
    register uint32_t operation __asm__("r0") = 0x20;
    register const uint32_t *block __asm__("r1") = reason;
    __asm__ volatile("bkpt 0xAB" : : "r"(operation), "r"(block) : "memory");
}

static void reset(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* the floating-point unit on */
    __asm__ volatile("dsb\n\tisb");
    for (uint32_t *to = &data_start, *from = &data_source; to < &data_end;) {
        *to++ = *from++;
    }
    for (uint32_t *to = &bss_start; to < &bss_end;) {
        *to++ = 0;
    }
    end(main());
    for (;;) {
    }
}

static void fault(void)
{
    end(255);
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) static void *const vectors[] = {
    &stack_top, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
};
