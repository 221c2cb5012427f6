/* The test vector: numbers that need no table, and sums over results that need no arrays of them. */

/* Number i of a pattern: a multiple of 1 / 64 in [0, 1). */
static real test_number(int i, int shift)
{
    return (real)((i % 64 * 37 + shift) % 64) / R(64.0);
}

/* values = numbers of a pattern between low and high. */
static void fill_test_numbers(real *values, int size, int shift, real low, real high)
{
    for (int i = 0; i < size; i++) {
        values[i] = low + (high - low) * test_number(i, shift);
    }
}

/* Whether the sum of values times the pattern is what it should be, relative to the sum of their magnitudes. */
static int agrees(const real *values, int size, double expected, double tolerance)
{
    double sum = 0.0, magnitudes = 0.0;
    for (int i = 0; i < size; i++) {
        const double value = (double)values[i];
        sum += value * (double)test_number(i, 7);
        magnitudes += value < 0.0 ? -value : value;
    }
    const double error = sum < expected ? expected - sum : sum - expected;
    return error <= tolerance * magnitudes;
}
