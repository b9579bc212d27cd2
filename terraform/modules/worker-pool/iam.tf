# Who an instance is. The role may do nothing at all: sts:GetCallerIdentity, with which an instance
# proves who it is to the coordinator, needs no permission.
resource "aws_iam_role" "worker" {
  name                 = local.role
  description          = "Identity of workers of the Muster pool ${var.name}; it has no permission"
  permissions_boundary = var.permissions_boundary
  tags                 = local.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

# Whatever somebody attaches elsewhere is taken off again at the next apply.
resource "aws_iam_role_policies_exclusive" "worker" {
  role_name    = aws_iam_role.worker.name
  policy_names = []
}

resource "aws_iam_role_policy_attachments_exclusive" "worker" {
  role_name   = aws_iam_role.worker.name
  policy_arns = []
}

resource "aws_iam_instance_profile" "worker" {
  name = local.role
  role = aws_iam_role.worker.name
  tags = local.tags
}
