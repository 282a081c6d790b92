/* Exit with success: what is measured is all that happens around it. */

int main(void)
{
	return 0;
}
