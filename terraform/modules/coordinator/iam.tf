# What the coordinator may do: drive the groups of its pools, and nothing else. README.md has the table
# of calls.
resource "aws_iam_role" "coordinator" {
  name                 = var.name
  description          = "Muster coordinator"
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

data "aws_iam_policy_document" "groups" {
  statement {
    sid = "See"
    # IAM knows no resources for these.
    actions   = ["autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeScalingActivities"]
    resources = ["*"]
  }

  statement {
    sid = "Drive"
    actions = [
      "autoscaling:SetDesiredCapacity",
      "autoscaling:SetInstanceProtection",
      "autoscaling:TerminateInstanceInAutoScalingGroup",
    ]
    resources = var.group_arns
  }
}

resource "aws_iam_role_policy" "groups" {
  count  = length(var.group_arns) == 0 ? 0 : 1
  name   = "groups"
  role   = aws_iam_role.coordinator.id
  policy = data.aws_iam_policy_document.groups.json
}

resource "aws_iam_role_policy_attachment" "ssm" {
  count      = var.ssm_access ? 1 : 0
  role       = aws_iam_role.coordinator.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "coordinator" {
  name = var.name
  role = aws_iam_role.coordinator.name
  tags = local.tags
}
